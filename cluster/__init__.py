"""The Ray system: how the roles are built, placed, driven, watched and commanded."""
