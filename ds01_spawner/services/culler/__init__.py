"""The culler: retires idle and over-age servers, and warns first.

A managed JupyterHub service, ``[sys.executable, "-m", "ds01_spawner.services.culler"]``.  Each pass looks at every
server once, decides in ``core.idleness``, acts and records; between passes it keeps a window of samples per container.
"""
