"""The portal: a person's projects, their environments and builds, in the browser.

A managed JupyterHub service, ``[sys.executable, "-m", "ds01_spawner.services.portal"]``, and therefore a process of its
own: when it is slow or down, the hub, its spawn form and every running server go on.  It cannot see the hub's memory
and does not try to; each fact comes from where it lives:

===============================  ====================================================================================
who somebody is                  HubOAuth; the token in the browser's cookie can do what its owner can, to their own
                                 servers, and nothing else
which servers run                the hub's REST API, read with the service's own token; one look serves every viewer
who holds which device           labels and the driver: an ``Allocator`` of its own that looks and never grants
who waits                        the queue's ticket file, which the hub writes
idle clocks                      the culler's status file
images and their recipes         the engine's labels, and the same ``Builder`` code as the hub's
builds and their logs            the records that every builder of the site writes
===============================  ====================================================================================

What it does itself: writes a person's own files with that person's rights, builds and tags that person's images.  A
build of the hub and one of the portal exclude each other by a lock file per image, so a launch that meets a build waits
for it and uses its result.  Starting and stopping servers is asked of the hub with the person's own token, so the hub
decides whether they may.

Pages are plain HTML and work without JavaScript; a small script keeps them fresh.
"""
