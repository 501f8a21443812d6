"""Measurements that repeat themselves from one command; results/ holds what we publish."""
