"""Guest memory: guarded mappings, shared files, dirty bitmaps."""
