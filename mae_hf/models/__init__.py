"""The two models: the masked autoencoder of pre-training and the classifier of fine-tuning."""
