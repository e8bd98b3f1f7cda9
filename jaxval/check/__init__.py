"""What `check` does: a look at all that a validation will need, before there is one."""
