package enforce

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/braidnet/braid/internal/kernel/conntrack"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/reconcile"
	"github.com/braidnet/braid/netagent/policy"
)

// cutPause is the least time between two readings of the table of connections.
const cutPause = time.Second

// readings is how often the table is read after a change, and again for as long as there is something to end: a
// table that changes while it is read may be told with an entry left out, and an answer that was under way makes
// the kernel believe that the connection began at the other end, where nothing forbids it.
const readings = 2

// flowEnder ends connections that a change of policy forbids. The kernel judges a connection by its first
// packet only; once its entry is gone, its next packet is a first one again.
type flowEnder struct {
	log      *slog.Logger
	conn     *conntrack.Conn
	compiler *policy.Compiler
	kick     func()

	mu  sync.Mutex
	due int // readings of the table to come

	last  time.Time // the step's own
	cut   int
	ended map[ends]struct{} // what the reading before ended
}

// ends are who began a connection, and who answered.
type ends struct {
	protocol model.Protocol
	from, to netip.AddrPort
}

// changed says that the kernel has a change of the compiled value.
func (f *flowEnder) changed(d policy.Delta) {
	forbids := len(d.Sections)+len(d.Chains) > 0
	for _, t := range d.Targets {
		forbids = forbids || t.Ingress != nil || t.Egress != nil // a pod that nothing isolates forbids nothing
	}
	for _, s := range d.Sets {
		forbids = forbids || len(s.Remove) > 0
	}
	if !forbids {
		return
	}
	f.mu.Lock()
	f.due = readings
	f.mu.Unlock()
	f.kick()
}

func (f *flowEnder) step(ctx context.Context) (reconcile.Outcome, error) {
	select {
	case <-ctx.Done():
		return reconcile.Outcome{}, ctx.Err()
	case <-time.After(time.Until(f.last.Add(cutPause))):
	}
	f.mu.Lock()
	due := f.due
	f.due = max(due-1, 0)
	f.mu.Unlock()
	var out reconcile.Outcome
	if due > 0 {
		n, err := f.clean()
		f.last = time.Now()
		if err != nil {
			f.mu.Lock()
			f.due = readings
			f.mu.Unlock()
			return out, err
		}
		if due > 1 || n > 0 {
			f.mu.Lock()
			f.due = max(f.due, 1)
			f.mu.Unlock()
			f.kick()
		}
		if f.cut += n; n > 0 {
			f.log.Info("connections that policy forbids were ended", "count", n)
			out.Changes = []string{fmt.Sprintf("ended %d connections", n)}
		}
	}
	out.Summary = fmt.Sprintf("%d connections ended since the start", f.cut)
	return out, nil
}

// clean ends what policy forbids now, of connections that have an end on this node.
func (f *flowEnder) clean() (cut int, err error) {
	own, err := f.conn.LocalAddrs()
	if err != nil {
		return 0, err
	}
	before := f.ended
	f.ended = map[ends]struct{}{}
	for _, ipv6 := range []bool{false, true} {
		for _, protocol := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
			n, err := f.conn.Delete(conntrack.Filter{IPv6: ipv6, Protocol: uint8(protocol)}, func(x conntrack.Flow) bool {
				if !f.forbidden(x, protocol, own) {
					// When the next packet was an answer, the kernel takes whoever sent it for who began.
					other := ends{protocol, x.Answers, x.Src}
					_, was := before[other]
					if was {
						f.ended[other] = struct{}{}
					}
					return was
				}
				f.ended[ends{protocol, x.Src, x.Answers}] = struct{}{}
				return true
			})
			cut += n
			if err != nil && !conntrack.Unsupported(err) {
				return cut, err
			}
		}
	}
	return cut, nil
}

func (f *flowEnder) forbidden(x conntrack.Flow, protocol model.Protocol, own map[netip.Addr]struct{}) bool {
	_, fromNode := own[x.Src.Addr()]
	return !f.compiler.Eval(policy.Packet{Src: x.Src.Addr(), Dst: x.Answers.Addr(), Protocol: protocol, Port: x.Answers.Port(), FromNode: fromNode}).Allowed
}
