"""Measurements that repeat themselves from one command: here those for everyone; results/ holds what we publish."""
