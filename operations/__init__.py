"""What people and builds do with a deployed platform: migrate a schema, list releases, roll back, restore."""
