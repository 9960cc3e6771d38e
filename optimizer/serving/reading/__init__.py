"""What is read out of a model's answers about a text: entities, answers to questions, words in place of masks.

Names and rules are those of the pipelines of ``transformers``, whose numbers the tests compare with.
"""
