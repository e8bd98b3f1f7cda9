#!/bin/sh
# One machine: the trainer has GPU 0, jaxval has GPU 1, and goes on after the shell is closed.
exec nohup python -m jaxval.main --flagfile=val.flags --devices=gpu:1 >jaxval.log 2>&1
