"""The AVC representation: clips as the bytes of H.264 streams (ITU-T H.264)."""
