"""The product over HTTP: search, videos, media, jobs and the page. `clipreel serve`, or `create_app` of app.py."""
