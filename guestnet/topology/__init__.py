"""The verbs on topologies: files, bringing up, looking, taking down."""
