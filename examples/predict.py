"""Asks a trained model for moments of a video: `python examples/predict.py [RUN]`."""

import sys

import h5py

import cdn_tune

retriever = cdn_tune.load(sys.argv[1] if len(sys.argv) > 1 else "runs/example-train")
with h5py.File("data/planted/vgg_rgb_features.hdf5") as file:
    features = file["P0001"][:]  # frame features at equal distances [frames, size]

video = retriever.encode(features, duration=30.0)
queries = ["a person opens the door", "a man carries a box"]
for query, moments in zip(queries, retriever.answer(video, queries, top=3), strict=True):
    print(query)
    for moment in moments:
        print(f"  {moment.start:6.2f} s to {moment.end:6.2f} s, score {moment.score:.3f}")
