from tests.test_attacks import *
from tests.test_attacks import served, rude
from remoter._messages import *
def test_y(served, rude):
    one = rude()
    a = one.attach(client="w"); S=a.session
    odd= [
      Submit(n=1, session=S, code="1", width=-5), Submit(n=2, session=S, code="print('x'); list(range(200))", width=BEYOND),
      Submit(n=3, session=S, code="1/0", mode="script", filename="a\0b"), 
      Submit(n=4, session=S, code="1/0", mode="script", filename="x"*5_000_000), 
      Submit(n=5, session=S, code=""), Submit(n=6, session=S, code="("*100000),
      Submit(n=7, session=S, code="-"*200000+"1"),Submit(n=8, session=S, code="x=1;"*200000, mode="script"),
      Submit(n=9, session=S, code="1"*60_000_000),
      Submit(n=10, session=S, code="'"+"1"*66_000_000+"'"),
      ]
    for o in odd:
        t=time.monotonic()
        one.say(encode(o))
        got=[]
        ok=False
        try:
            while not ok:
                while True:
                    assert one.socket.poll(10000)
                    m=decode_from_server(one.socket.recv())
                    if type(m).__name__!="Pong": break
                got.append(type(m).__name__)
                for r in getattr(m,'events',[]):
                    e=decode_event(r)
                    got.append((e.kind,(e.text or "")[-200:],e.data if e.kind in("done","error") else None))
                    if e.kind=="done": ok=True
                if isinstance(m,Events): one.say(encode(Acknowledge(seq=m.cursor)))
            print(o.n, repr(o)[-100:], round(time.monotonic()-t,3), "ok", [str(g)[:300] for g in got])
        except AssertionError as e:
            print(o.n, repr(o)[-100:], "!!!!", repr(e)[:100], [str(g)[:300] for g in got])
        print(memory(served.server_pid), memory(served.worker_pid), is_alive(served.server_pid), is_alive(served.worker_pid))
    with served.connect() as s:
        print(s.run("1+1"))
    print(log_of(served)[-3000:])
