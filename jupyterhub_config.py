"""A site's values.  Everything else is set up by ``configure``; docs/how-to/install.md explains each line."""

from ds01_spawner import configure

c = get_config()

# Who may log in, and how they reach the hub.
c.JupyterHub.bind_url = "http://127.0.0.1:8000"
c.JupyterHub.authenticator_class = "pam"
c.Authenticator.allow_all = True
c.Authenticator.admin_users = {"root"}

# Where the hub keeps what it must remember.
c.JupyterHub.db_url = "sqlite:////var/lib/ds01/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = "/var/lib/ds01/jupyterhub_cookie_secret"

configure(
    c,
    # Projects without a Dockerfile get this local image.
    default_image="ds01/python:13",
    # What a user and a group may have; docs/reference/limits.md
    limits_file=None,
)
