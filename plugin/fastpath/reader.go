package fastpath

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/names"
	"github.com/braidnet/braid/plugin/kubernetes"
)

// fast are the types that are answered here: addresses, ports and names, and others that clients ask for
// beside them, which a cluster has no records of.
var fast = []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeMX, dns.TypeTXT, dns.TypeCNAME}

// reader serves one socket.
type reader struct {
	group   *group
	socket  *socket
	query   query
	rand    *rand.Rand
	targets []names.Target
	pointed []names.Pointer
	scratch [maxPorts * maxLabels]byte
	slow    queue
	done    [batchLen]done
	nDone   int
}

// Bounds of what waits for the slow path on each socket. The kernel's own queue is a few hundred
// packets long; no more wait here, and they are handed over few at a time, so that names that are
// known never wait behind many that are not.
const (
	maxWaiting = 256
	maxStarted = 16
	maxBatches = 32 // read before some are handed over: more than the kernel's queue holds
)

func newReader(g *group, s *socket) *reader {
	return &reader{group: g, socket: s, rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), targets: make([]names.Target, 0, maxTargets), pointed: make([]names.Pointer, 0, maxPorts)}
}

// maxTargets is how many targets of a name are looked at here. Names with more are rare, and making
// their answers takes so long that the way there no longer matters.
const maxTargets = 256

// run serves until the socket is woken, and then what it still holds. What the kernel has is read
// first, whatever it is: that keeps its queue short, and lets plain questions be answered before others
// are begun.
func (r *reader) run() {
	for stopping, batches := false, 0; ; {
		n, err := r.socket.read(r.slow.len() == 0 && !stopping)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			stopping = true
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			log.Warningf("reading from %s: %v", r.group.addr, err)
		}
		if n > 0 {
			r.batch(n)
		}
		if batches++; n == batchLen && batches < maxBatches {
			continue
		}
		batches = 0
		if r.slow.len() > 0 {
			r.slow.start(maxStarted, r.group)
			began := time.Now()
			runtime.Gosched()
			r.group.pace.waited(time.Since(began))
		} else if stopping && n == 0 && err == nil {
			return
		}
	}
}

// batch answers n packets that were read.
func (r *reader) batch(n int) {
	began := time.Now()
	p := r.group.plan.Load()
	r.nDone = 0
	for i := range n {
		packet := r.socket.request(i)
		if p != nil && r.query.read(packet) && r.answer(p, i) {
			continue
		}
		if !r.slow.push(r, p, i) {
			shed.Inc()
		}
	}
	if r.socket.queued > 0 {
		if err := r.socket.flush(); err != nil && !errors.Is(err, net.ErrClosed) {
			log.Warningf("writing to %s: %v", r.group.addr, err)
		}
	}
	answered.Add(float64(r.nDone))
	seconds := time.Since(began).Seconds()
	for i := range r.nDone {
		r.done[i].add(seconds)
	}
}

// answer queues the answer to packet i, or reports false.
func (r *reader) answer(p *plan, i int) bool {
	q := &r.query
	if !slices.Contains(fast, q.typ) {
		return false
	}
	name := q.name()
	for _, z := range p.zones {
		rel, ok := strings.CutSuffix(name, z.suffix)
		if !ok || (rel != "" && rel[len(rel)-1] != '.') {
			continue
		}
		q.plain = plain6
		if r.socket.isIPv4(i) {
			q.plain = plain4
		}
		reply, whole, rcode := r.make(z, strings.TrimSuffix(rel, "."))
		if reply == nil {
			return false
		}
		r.socket.queue(i, len(reply))
		r.done[r.nDone] = done{zone: z, typ: q.typ, ipv4: q.plain == plain4, do: q.do, rcode: rcode, asked: len(q.packet), whole: whole}
		r.nDone++
		return true
	}
	return false
}

// make makes the reply in place; nil when it cannot be made here. whole is its length before names are
// compressed and records left out, and without the OPT record.
func (r *reader) make(z *zone, rel string) (reply []byte, whole int, rcode byte) {
	q, out := &r.query, r.socket.reply()
	if z.Reverse {
		reply, whole = r.pointers(z, out)
		return reply, whole, dns.RcodeSuccess
	}
	outcome, name, targets := z.Resolve(rel, q.typ, r.targets)
	if len(targets) > maxTargets {
		return nil, 0, 0
	}
	if outcome == kubernetes.Found && q.typ == dns.TypeSRV {
		reply, whole, outcome = r.ports(z, name, targets, out)
	} else if outcome == kubernetes.Found {
		if targets = wanted(targets, q.typ); len(targets) == 0 {
			outcome = kubernetes.NoData
		} else {
			z.shuffle(targets, r.rand)
			reply, whole = q.addresses(out, targets, z.answer.apply(z.TTL))
		}
	}
	if outcome == kubernetes.NoName {
		rcode = dns.RcodeNameError
	}
	if outcome == kubernetes.NoData || outcome == kubernetes.NoName {
		reply, whole = q.denial(out, rcode, z.wireLen, soa{ttl: z.denial.apply(min(z.TTL, 300)), minimum: z.TTL, serial: z.Serial()})
	}
	return reply, whole, rcode
}

// shuffle brings targets into random order where loadbalance does.
func (z *zone) shuffle(targets []names.Target, r *rand.Rand) {
	if z.shuffled {
		shuffle(targets, r)
	}
}
