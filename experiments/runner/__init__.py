"""Verbs that every command shares. An experiment calls them; they never call it."""
