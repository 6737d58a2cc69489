"""Other runtimes' files of an artefact, each format a file, each checked against the artefact's own sample."""
