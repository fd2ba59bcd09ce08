"""Measure on another machine over ssh, by the very modules that measure on this one, and leave nothing there."""
