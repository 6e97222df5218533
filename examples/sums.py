from shunter import flow, task


@task(retries=2, retry_delay=1)
def fetch(n: int) -> int:
    return n * n


@task
def total(values: list[int]) -> int:
    return sum(values)


@flow(name="sums")
def sums(upto: int = 10) -> int:
    return total.submit(fetch.map(range(upto))).result()


if __name__ == "__main__":
    print(sums(5))  # no server needed
    sums.serve(name="every-minute", parameters={"upto": 20}, interval=60)
