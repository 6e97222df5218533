"""The agent: takes runs, launches them, and reports what became of them, through every kind of trouble.

``daemon`` holds the one main loop; ``supervisor`` sees one attempt from assignment to its end;
``reporter`` and ``log_shipper`` bring what is owed to the server; ``janitor`` removes what is settled;
``state_folder`` and ``journal`` are what an agent remembers when it dies.
"""
