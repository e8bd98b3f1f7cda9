#!/bin/sh
# One machine: the trainer uses GPU 0, jaxval uses GPU 1 and continues after the shell closes.
exec nohup python -m jaxval.main --flagfile=val.flags --devices=gpu:1 >jaxval.log 2>&1
