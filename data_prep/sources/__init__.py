"""Where rows come from: problems, traces of others, files of any kind, datasets on the Hub, the tiny task."""
