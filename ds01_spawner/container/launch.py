"""Starts the notebook server inside a project's container, by the image's own Python.

    python3 -I -S /opt/ds01/boot/launch.py --plan=<runtime|runtime-first|image-first> [--own-kernel] [--check]

``-I -S`` keep the image's PYTHONPATH, user site and ``.pth`` files away from the server; they reach kernels and
terminals unchanged, because nothing is taken out of the environment and nothing of the runtime is put into it.  Where
JupyterHub's variables are missing, a plain JupyterLab starts on ``0.0.0.0:8888`` with the token in ``JUPYTER_TOKEN``.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import ds01_server  # compiled, unlike a script

del sys.path[0]
ds01_server.main()
