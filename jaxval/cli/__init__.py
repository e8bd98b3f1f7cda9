"""What the apps share: flags, devices, help, messages and exit status."""
