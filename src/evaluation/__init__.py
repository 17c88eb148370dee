"""Answers, their scores, and how sure the scores are."""
