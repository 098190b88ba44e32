package enforce

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/kernel/nflog"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
)

// book is a log that can be read while it is written.
type book struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *book) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *book) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func audited(on bool) *model.Namespace {
	return &model.Namespace{Origin: model.Origin{Ref: model.Ref{Kind: model.KindNamespace, Key: model.Key{Name: "shop"}}}, Audit: on}
}

// hear starts to listen to drops and returns what is logged of them.
func (l *lab) hear() *book {
	log := &book{}
	l.drops.log = slog.New(slog.NewTextHandler(log, nil))
	l.drops.open = func() (c *nflog.Conn, err error) {
		err = l.node.Do(func() error { c, err = nflog.Open(policy.LogGroup, policy.LogBytes); return err })
		return c, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.drops.run(ctx); close(done) }()
	l.t.Cleanup(func() { cancel(); <-done })
	return log
}

func (l *lab) waitFor(log *book, line string, do func()) {
	l.t.Helper()
	nstest.Wait(l.t, "the line "+line, func() error {
		do()
		if text := log.String(); !strings.Contains(text, line) {
			return fmt.Errorf("the log has\n%s", text)
		}
		return nil
	})
}

// TestDropsAreTold: a denied packet is logged with both ends and the policies, and counted; under audit it
// passes, and is logged and counted all the same. What is allowed is never told of.
func TestDropsAreTold(t *testing.T) {
	l := isolatedLab(t)
	log := l.hear()
	l.change(allowing("web", "b", "192.0.2.0/24"))
	l.waitFor(log, `msg="drop shop/a → shop/b:80/tcp by shop/web (ingress, no rule matches)"`, func() { l.reaches(false, "isolated") })

	l.change(audited(true))
	if got := l.compiler.Audited(); len(got) != 1 {
		t.Errorf("under audit: %v", got)
	}
	l.waitFor(log, `msg="would drop (audit) shop/a → shop/b:80/tcp by shop/web (ingress, no rule matches)"`, func() { l.reaches(true, "under audit") })
	l.change(audited(false))
	l.reaches(false, "out of audit")

	// Nobody knows who has this address.
	l.pods["a"].Exec(t, "ip", "addr", "add", "10.0.0.9/32", "dev", "eth0")
	l.node.Exec(t, "ip", "route", "add", "10.0.0.9/32", "dev", "braid0")
	l.waitFor(log, `msg="drop 10.0.0.9 → shop/b:80/tcp (egress, 10.0.0.9 is no pod that is known here)"`, func() {
		_ = l.pods["a"].Do(func() error {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("10.0.0.9")}, Timeout: time.Second}
			if c, err := d.Dial("tcp4", "10.0.0.3:80"); err == nil {
				c.Close()
				t.Error("a stranger reaches the pod")
			}
			return nil
		})
	})
	if text := log.String(); strings.Contains(text, "→ shop/a") {
		t.Errorf("replies are told of:\n%s", text)
	}
	totals, err := l.counts.sum(l.plane)
	if err != nil {
		t.Fatal(err)
	}
	web := counted{policy: model.Key{Namespace: "shop", Name: "web"}}
	if totals[web] == 0 || totals[counted{direction: policy.Egress}] == 0 {
		t.Errorf("counted: %v", totals)
	}
	if n := testutil.CollectAndCount(l.Enforcer, "braid_policy_denied_packets_total"); n != 1 {
		t.Errorf("%d series of denied packets", n)
	}
	denied := totals[web]
	l.node.Exec(t, "nft", "flush", "ruleset") // the kernel's counters begin anew
	l.mustStep()
	l.reaches(false, "after a flush")
	if totals, err = l.counts.sum(l.plane); err != nil || totals[web] <= denied {
		t.Errorf("counted %d before the flush, %d after it (%v)", denied, totals[web], err)
	}
}

// TestDropLines: a line is not repeated, of very many some are logged, and what is allowed by now is not.
func TestDropLines(t *testing.T) {
	c := policy.NewCompiler("n1")
	deny := allowing("web", "b", "192.0.2.0/24")
	b := newPod("b")
	b.IPs = []netip.Addr{netip.MustParseAddr("10.0.0.3")}
	for _, o := range []model.Object{audited(false), b, deny} {
		c.Apply(0, []model.Change{{Ref: o.From().Ref, New: o}})
	}
	d := c.Flush()
	log := &book{}
	drops := newDropTeller(slog.New(slog.NewTextHandler(log, nil)), c)
	mark := policy.MarkOf(d.Chains[0]).String()
	packet := func(src string) nflog.Packet {
		return nflog.Packet{Prefix: mark, Src: netip.MustParseAddr(src), Dst: b.IPs[0], Protocol: 6, DstPort: 80}
	}
	now := time.Now()
	for range 5 {
		drops.take(packet("198.51.100.1"), now)
	}
	drops.take(packet("198.51.100.1"), now.Add(sameDrop))
	if text := log.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "(ingress, no rule matches), and 4 packets like it before") {
		t.Errorf("the log has\n%s", text)
	}
	for i := range 2 * dropsKept {
		drops.take(packet(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}).String()), now.Add(2*sameDrop))
	}
	if n := strings.Count(log.String(), "\n"); n < dropBurst || n > 2*dropBurst || len(drops.told) > dropsKept {
		t.Errorf("%d lines, %d remembered", n, len(drops.told))
	}
	before := log.String()
	drops.take(packet("192.0.2.1"), now.Add(time.Hour))
	other := packet("198.51.100.1")
	other.Prefix = "somebody else's"
	drops.take(other, now.Add(time.Hour))
	if log.String() != before || drops.stale.Load() != 1 {
		t.Errorf("told of what is allowed:\n%s", strings.TrimPrefix(log.String(), before))
	}
}
