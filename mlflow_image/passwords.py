"""What a password must be, for every user of MLflow's own basic auth (CVE-2025-11200).

MLflow asks for 12 characters and no more: "password1234" and "aaaaaaaaaaaa" pass. Here what is left of a password without
the words that everybody tries must still take guessing. No kinds of characters are prescribed: that makes passwords
harder to remember, not harder to guess (NIST SP 800-63B).
"""

import re

# The users that the server keeps by itself (`own_users.py`): one for people in charge, one for the pipeline's gates.
ADMIN, GATES = "admin", "gates"

SHORTEST, LONGEST = 12, 256
LEFT, KINDS = 8, 5  # characters without the words below, and how many different ones
WORDS = (
    r"passwor[dt]|passw0rd|p@ssw[o0]rd|qwertz|qwerty|asdfgh|yxcvbn|zxcvbn|letmein|welcome|changeme|default|secret"
    r"|mlflow|admin|gates|user|login|abcdef|012345|123456|234567|345678|456789|567890|1234|1q2w3e4r"
)


def problem(user: str, password: str) -> str:
    """Why that user must not have that password, in a few words; empty if nothing speaks against it."""
    if len(password) < SHORTEST:
        return f"it has fewer than {SHORTEST} characters"
    if len(password) > LONGEST:  # each try to sign in hashes as much as somebody sends
        return f"it has more than {LONGEST} characters"
    words = rf"{re.escape(user.lower())}|{WORDS}" if len(user) > 2 else WORDS
    left = re.sub(words, "", password.lower())
    if len(left) < LEFT or len(set(left)) < KINDS:
        return "without the user's name and the words that everybody tries, too little of it is left"
    return ""
