# Sourced by builds before they install: where PACKAGES names the account's own repository, pip and uv use that, not PyPI.
# The password is good for a quarter of an hour and stands in the build's environment alone.
if [ -n "${PACKAGES:-}" ]; then
  package_password="$(aws codeartifact get-authorization-token --domain "$PACKAGES" --duration-seconds 900 \
    --query authorizationToken --output text)" || return 1
  package_url="$(aws codeartifact get-repository-endpoint --domain "$PACKAGES" --repository "$PACKAGES" --format pypi \
    --query repositoryEndpoint --output text)" || return 1
  export PIP_INDEX_URL="https://aws:$package_password@${package_url#https://}simple/"
  export UV_DEFAULT_INDEX="$PIP_INDEX_URL"
fi
