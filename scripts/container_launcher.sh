#!/bin/sh
# `tailrun` in the image. -P: a folder named "app" where you stand is not ours.
exec /opt/tailrun/bin/python -P -m app "$@"
