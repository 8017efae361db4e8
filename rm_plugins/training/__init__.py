"""What watches the training of a policy, whoever trains it: journal, history, exploitation, what rewards have learned."""

__all__: list[str] = []
