"""Where a training's numbers go beside `metrics.jsonl`: one small protocol, a file for each place."""
