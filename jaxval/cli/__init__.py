"""The frame of an app: flags, devices, help, messages and exit status."""
