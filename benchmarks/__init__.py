"""What proves the speed: each benchmark measures jaxval against a peer, in the same run."""
