"""What a plan must meet for methods whose settings bind several stages or pools, one file per method."""
