"""Settings: frozen, typed, checked at the door. Must not know Ray, torch or the engines."""
