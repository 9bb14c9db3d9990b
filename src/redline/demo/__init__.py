"""The bundled demo: generated scenes of machine parts, the detector trained on them and its training script.

It knows nothing of specs, engines or runs; the demo model is used like any user's model.
"""
