"""A trained model in use: loading, predicting, drawing, exporting."""
