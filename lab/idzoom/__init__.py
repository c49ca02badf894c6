"""IDZoom, MagicID's data engine: pictures in, WebDataset shards of six modalities out, on Ray Data."""
