"""What tests are made of, in one place: networks, shards, tables and whole runs."""
