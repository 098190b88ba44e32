package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/netagent/agent/tools"
	"github.com/braidnet/braid/netagent/policy"
	"github.com/braidnet/braid/netagent/policy/nftables"
)

// packetFilter is a packet filter that policies are enforced with. All but Counts is for the goroutine of the
// policy loop.
type packetFilter interface {
	// Name is what status calls it.
	Name() string
	// Write brings the kernel to the compiled value, of which delta is the newest part and all tells the whole.
	// It says what it found otherwise than it had left it.
	Write(delta policy.Delta, all func() policy.Delta) (changes []string, err error)
	// Forget makes the next Write compare everything with the kernel; Known reports whether it need not.
	Forget()
	Known() bool
	// Hold keeps what an earlier agent left in force as it is, and where nothing is left cuts pods off. It is for the
	// time before the first Write.
	Hold() error
	// Refused returns what recognises the sections that a failed Write was refused for; nil when the error names none.
	Refused(err error) func(*policy.Section) bool
	// Counts reads how many packets met each mark, for any goroutine. All counts began anew when era is another one.
	Counts(marks []policy.Mark) (counts map[policy.Mark]uint64, era uint64, err error)
	// Watch kicks when somebody takes rules away, until ctx ends, for another goroutine.
	Watch(ctx context.Context, kick func())
	Close()
}

// goneEvery is how often the agent looks whether its tables are there, where others can take them away. It costs a
// question to the kernel, and another one when the ruleset has changed.
const goneEvery = 25 * time.Millisecond

// nftablesPlane enforces policies with nftables.
type nftablesPlane struct {
	log      *slog.Logger
	options  nftables.Options
	links    *netlink.Handle
	conn     *nft.Conn
	apply    func([]desired.NFTOp) error // conn's; tests put refusals between
	families []desired.NFTFamily

	state      *nftables.State
	gateway    net.HardwareAddr // of the pods' bridge, as the kernel's table has it
	generation uint32           // of the ruleset when our tables were in order; 0 = not known
	looked     time.Time        // when it was asked for last

	written atomic.Bool   // the tables were there
	gone    atomic.Bool   // and are not any more
	era     atomic.Uint64 // how often tables were made
	countMu sync.Mutex
	counter *nft.Conn
}

// newNFTables opens the nftables of the network namespace it is called in, and changes nothing there. It
// fails where the kernel cannot do what is needed.
func newNFTables(log *slog.Logger, o nftables.Options) (p *nftablesPlane, err error) {
	p = &nftablesPlane{log: log, options: o}
	defer func() {
		if err != nil {
			p.Close()
			p = nil
		}
	}()
	if p.links, err = link.OpenAt(-1); err != nil {
		return p, err
	}
	if p.conn, err = nft.Open(); err != nil {
		return p, fmt.Errorf("policy: %w; set policy: off where the kernel has no nftables", err)
	}
	p.apply = p.conn.Apply
	if p.counter, err = nft.Open(); err != nil {
		return p, err
	}
	for _, f := range nftables.Families {
		if f != desired.NFTIPv6 || tools.HaveIPv6() {
			p.families = append(p.families, f)
		}
	}
	p.options.Owned = true
	if err = p.check(); errors.Is(err, unix.EOPNOTSUPP) {
		p.options.Owned = false
		log.Info("this kernel cannot keep others from flushing the rules of policies (Linux 6.9 or later can): they are made anew when that happens")
		err = p.check()
	}
	if err != nil && p.options.Log {
		p.options.Log = false
		if again := p.check(); again == nil {
			log.Warn("this kernel cannot tell of what policies deny (nft_log and nfnetlink_log are needed): no lines of drops, policies are enforced all the same", "err", err)
			err = nil
		}
	}
	if err != nil {
		return p, fmt.Errorf("policy: this kernel cannot enforce it (nf_tables with nft_reject, nft_ct and nft_limit, also for bridges, is needed; policy: off runs without): %w", err)
	}
	p.state = nftables.NewState(p.families, p.options)
	return p, nil
}

// check asks the kernel whether it would take the tables.
func (p *nftablesPlane) check() error {
	for _, f := range p.families {
		t := nftables.Skeleton(f, p.options)
		if err := p.conn.Check([]desired.NFTOp{{Verb: desired.NFTAddTable, Family: f, Table: t.Name, Def: &t}}); err != nil {
			return err
		}
	}
	t, _ := nftables.Bridge(p.options, nil)
	return p.conn.Check([]desired.NFTOp{{Verb: desired.NFTAddTable, Family: t.Family, Table: t.Name, Def: &t}})
}

// Name implements packetFilter.
func (p *nftablesPlane) Name() string { return "nftables" }

// Close gives up the sockets. The kernel stays as it is.
func (p *nftablesPlane) Close() {
	if p.links != nil {
		p.links.Close()
	}
	for _, c := range []*nft.Conn{p.conn, p.counter} {
		if c != nil {
			c.Close()
		}
	}
}

// Forget implements packetFilter.
func (p *nftablesPlane) Forget() {
	p.state.Forget()
	p.generation = 0
}

// Known implements packetFilter.
func (p *nftablesPlane) Known() bool { return p.generation != 0 }

// Write implements packetFilter.
func (p *nftablesPlane) Write(delta policy.Delta, all func() policy.Delta) (changes []string, err error) {
	if p.gone.Swap(false) {
		if err := p.shut(); err != nil {
			return nil, err
		}
		p.Forget()
	}
	generation, whole := p.generation, p.generation == 0
	if now := time.Now(); p.generation == 0 || !p.options.Owned && now.Sub(p.looked) >= Audit {
		p.looked = now
		if generation, err = p.conn.Generation(); err != nil {
			return nil, err
		}
		whole = p.generation == 0 || generation != p.generation
	}
	before := p.conn.Commits()
	ops, err := p.state.Apply(delta)
	if err == nil {
		err = p.apply(ops)
	}
	if whole { // also when that failed, because somebody took away what it was to change
		changes, err = p.replace(all())
	}
	if err != nil {
		return changes, err
	}
	fenced, err := p.fence(whole)
	// What others did meanwhile makes another number of it, and the next look compares as a whole.
	p.generation = generation + p.conn.Commits() - before
	p.written.Store(true)
	return append(changes, fenced...), err
}

// own takes over the tables that an earlier run of the agent left. Those of another layout are left: they will be
// made anew.
func (p *nftablesPlane) own() error {
	if !p.options.Owned {
		return nil
	}
	bridge, _ := nftables.Bridge(p.options, nil)
	tables := []desired.NFTTable{bridge}
	for _, f := range p.families {
		tables = append(tables, nftables.Skeleton(f, p.options))
	}
	for _, t := range tables {
		comment, err := p.conn.Comment(t.Family, t.Name)
		switch {
		case errors.Is(err, unix.ENOENT) || err == nil && comment != t.Comment:
			continue
		case err == nil:
			err = p.conn.Apply([]desired.NFTOp{{Verb: desired.NFTOwnTable, Family: t.Family, Table: t.Name}})
		}
		if err != nil {
			return fmt.Errorf("take over table %s %s (does another agent run on this node?): %w", t.Family, t.Name, err)
		}
	}
	return nil
}

// Hold implements packetFilter.
func (p *nftablesPlane) Hold() error {
	if err := p.own(); err != nil {
		return err
	}
	return p.shut()
}

// shut puts tables in which nobody is known where there are none, as after a flush: until the whole is written again, what
// is new is refused. It does not wait for anything to be read.
func (p *nftablesPlane) shut() error {
	for _, f := range p.families {
		if there, err := p.conn.Exists(f, nftables.TableName); err != nil || there {
			continue
		}
		t := nftables.Skeleton(f, p.options)
		if err := p.conn.Apply([]desired.NFTOp{{Verb: desired.NFTAddTable, Family: f, Table: t.Name, Def: &t}}); err != nil {
			return err
		}
		p.log.Warn("somebody took a table of policies away: until it is made anew, pods are cut off", "table", f.String()+" "+nftables.TableName)
	}
	return nil
}

// Watch kicks as soon as somebody takes our tables away, until ctx ends. Where nobody can, there is nothing to watch.
func (p *nftablesPlane) Watch(ctx context.Context, kick func()) {
	if p.options.Owned {
		return
	}
	conn, err := nft.Open()
	if err != nil {
		p.log.Warn("the rules of policies are watched less closely", "err", err)
		return
	}
	defer conn.Close()
	tick := time.NewTicker(goneEvery)
	defer tick.Stop()
	var seen uint32
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, err := conn.Generation()
		if err != nil || now == seen {
			continue
		}
		seen = now
		for _, f := range p.families {
			if there, err := conn.Exists(f, nftables.TableName); err == nil && !there && p.written.Load() {
				p.gone.Store(true)
				kick()
			}
		}
	}
}

// replace compares the kernel with the compiled value as a whole.
func (p *nftablesPlane) replace(all policy.Delta) ([]string, error) {
	if err := p.own(); err != nil {
		return nil, err
	}
	have := nftables.Contents{}
	for _, f := range p.families {
		c, err := p.conn.Read(f, nftables.TableName)
		if err != nil {
			return nil, err
		}
		have[f] = c
	}
	ops, why := p.state.Replace(all, have)
	for _, w := range why {
		p.log.Warn("nftables table is made anew", "reason", w)
	}
	if len(ops) > 0 {
		p.era.Add(1)
	}
	return why, p.apply(ops)
}

// fence keeps pods from going past the node's IP stack.
func (p *nftablesPlane) fence(whole bool) ([]string, error) {
	var gateway net.HardwareAddr
	l, err := p.links.LinkByName(p.options.Bridge)
	var missing netlink.LinkNotFoundError
	switch {
	case err == nil:
		gateway = l.Attrs().HardwareAddr
	case !errors.As(err, &missing):
		return nil, fmt.Errorf("look up bridge %s: %w", p.options.Bridge, err)
	}
	if !whole && slices.Equal(gateway, p.gateway) {
		return nil, nil
	}
	have, err := p.conn.Read(desired.NFTBridge, nftables.TableName)
	if err != nil {
		return nil, err
	}
	ops, why := nftables.ReplaceBridge(p.options, gateway, have)
	if err := p.conn.Apply(ops); err != nil {
		return nil, err
	}
	p.gateway = gateway
	if why == "" {
		return nil, nil
	}
	return []string{why}, nil
}

// Refused implements packetFilter.
func (p *nftablesPlane) Refused(err error) func(*policy.Section) bool {
	var sets, chains []string
	for _, r := range nft.Refusals(err) {
		if r.Set != "" {
			sets = append(sets, r.Set)
		}
		if r.Chain != "" {
			chains = append(chains, r.Chain)
		}
	}
	if len(sets)+len(chains) == 0 {
		return nil
	}
	return func(s *policy.Section) bool { return nftables.Uses(s, sets, chains) }
}

// Counts implements packetFilter.
func (p *nftablesPlane) Counts(marks []policy.Mark) (out map[policy.Mark]uint64, era uint64, err error) {
	p.countMu.Lock()
	defer p.countMu.Unlock()
	out, era = map[policy.Mark]uint64{}, p.era.Load()
	for _, m := range marks {
		for _, f := range p.families {
			counts, err := p.counter.RuleCounts(f, nftables.TableName, nftables.CountingChain(m))
			if err != nil {
				return nil, era, err
			}
			for _, n := range counts { // one rule of a chain counts
				out[m] += n.Packets
			}
		}
	}
	return out, era, nil
}
