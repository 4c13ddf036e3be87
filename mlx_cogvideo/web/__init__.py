"""The page in the browser and the HTTP API, and the jobs that both of them start (extra: ui)."""
