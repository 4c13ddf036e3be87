"""Runs of which nothing can be lost: jobs and batches, records, saved states, previews."""
