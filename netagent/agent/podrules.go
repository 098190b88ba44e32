package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/cni/antispoof"
	"github.com/braidnet/braid/cni/hostport"
	"github.com/braidnet/braid/cni/masquerade"
	"github.com/braidnet/braid/cni/tables"
	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/internal/kernel/sysctl"
	"github.com/braidnet/braid/internal/reconcile"
)

// podRulesAudit is how often the agent looks whether anything changed in the node's nftables, which costs
// one question to the kernel.
const podRulesAudit = time.Second

// podRules guards the tables that the CNI plugin writes: what somebody else flushed is put back, and what
// belongs to links that are gone is taken away. It never adds a pod's rules of its own: it only remembers
// what it, or the agent before it, has seen.
type podRules struct {
	log  *slog.Logger
	h    *netlink.Handle
	conn *nft.Conn // nil where the kernel has no nftables

	file string // where what was seen is kept
	kept []byte // what the file holds; nil = nothing

	generation uint32                            // of the ruleset when it was last in order; 0 = not known
	seen       map[tableKey][]desired.NFTElement // of tables that were in order
}

type tableKey struct {
	family desired.NFTFamily
	name   string
}

var podTables = []tables.Group{hostport.Tables, antispoof.Tables, antispoof.RoutedTables, masquerade.Tables}

func newPodRules(runDir string, log *slog.Logger) (*podRules, error) {
	h, err := link.OpenAt(-1)
	if err != nil {
		return nil, err
	}
	conn, err := tables.Open()
	if err != nil && !errors.Is(err, tables.ErrNone) {
		h.Close()
		return nil, err
	}
	p := &podRules{log: log, h: h, conn: conn, file: filepath.Join(runDir, podRulesFile), seen: map[tableKey][]desired.NFTElement{}}
	p.recall()
	return p, nil
}

func (p *podRules) close() {
	p.h.Close()
	if p.conn != nil {
		p.conn.Close()
	}
}

func (p *podRules) step(context.Context) (reconcile.Outcome, error) {
	if p.conn == nil {
		return reconcile.Outcome{Summary: tables.ErrNone.Error()}, nil
	}
	generation, err := p.conn.Generation()
	if err != nil {
		return reconcile.Outcome{}, err
	}
	var out reconcile.Outcome
	if generation != p.generation {
		p.generation = 0
		if out.Changes, err = p.repair(); err != nil {
			return out, fmt.Errorf("rules of pods: %w", err)
		}
		if err := p.keep(); err != nil {
			return out, fmt.Errorf("keep what was seen of the rules of pods for the next agent: %w", err)
		}
		p.generation = generation // when that was ours, the next step looks once more and finds all in order
	}
	n := map[string]int{}
	for key, elements := range p.seen {
		n[key.name] += len(elements)
	}
	out.Summary = fmt.Sprintf("host ports: %d map elements, anti-spoofing: %d set elements", n[hostport.TableName], n[antispoof.TableName])
	return out, nil
}

// repair puts back what is missing and removes what nobody owns any more.
func (p *podRules) repair() (changes []string, err error) {
	for _, g := range podTables {
		done, err := p.restore(g)
		changes = append(changes, done...)
		if err != nil {
			return changes, err
		}
	}
	dead, err := p.dead()
	if err != nil {
		return changes, err
	}
	ports := hostport.Store{Log: p.log, Alive: p.alive}
	for _, name := range dead {
		if _, err := ports.Remove(name, append(antispoof.Groups, masquerade.Tables)...); err != nil {
			return changes, err
		}
		changes = append(changes, "removed what belonged to "+name+": there is no such link")
	}
	return changes, nil
}

// restore makes tables anew that are gone or whose rules were changed, with the elements that were seen, and
// remembers what is there. A table of another version of Braid is left alone: the plugin of that version
// keeps it.
func (p *podRules) restore(g tables.Group) (changes []string, err error) {
	err = g.Edit(func(have tables.Contents) (ops []desired.NFTOp, err error) {
		changes = nil
		list := g()
		for i := range list {
			t, got := &list[i], have[list[i].Family]
			key := tableKey{t.Family, t.Name}
			if got != nil && got.Comment != t.Comment {
				delete(p.seen, key)
				continue
			}
			damage := tables.Damage(t, got)
			if damage == "" {
				p.seen[key] = got.Elements
				continue
			}
			if _, seen := p.seen[key]; !seen && got == nil && !p.open(t) {
				continue // never needed so far
			}
			want, err := p.living(p.seen[key], got)
			if err != nil {
				return nil, err
			}
			ops = append(ops, have.Change(t, want, true)...)
			changes = append(changes, fmt.Sprintf("made nftables table %s %s anew, with %d elements: %s", t.Family, t.Name, len(want), damage))
		}
		return ops, nil
	})
	for _, c := range changes {
		p.log.Warn(c)
	}
	return changes, err
}

// open tells whether loopback addresses are routed from the pods' bridge or a routed pod's link, which needs the guard
// in the table.
func (p *podRules) open(t *desired.NFTTable) bool {
	if t.Family != desired.NFTIPv4 || t.Name != hostport.TableName {
		return false
	}
	const folder = "net/ipv4/conf"
	names, err := sysctl.List(folder)
	return err == nil && slices.ContainsFunc(names, func(name string) bool {
		if name != link.PodBridge && !strings.HasPrefix(name, link.VethPrefix) {
			return false
		}
		value, err := sysctl.Get(folder + "/" + name + "/route_localnet")
		return err == nil && value == "1"
	})
}

// living is what was seen and what is there still, without what belongs to links that are gone.
func (p *podRules) living(seen []desired.NFTElement, got *desired.NFTContents) (out []desired.NFTElement, err error) {
	if got != nil {
		out = slices.Clone(got.Elements)
	}
	for _, e := range seen {
		live, err := p.alive(tables.OwnerOf(e).Link)
		if err != nil {
			return nil, err
		}
		if live && !slices.ContainsFunc(out, func(o desired.NFTElement) bool { return tables.Same(o, e) }) {
			out = append(out, e)
		}
	}
	return out, nil
}

func (p *podRules) alive(name string) (bool, error) { return link.HasLink(p.h, name) }

// dead lists the links that have elements and are not there.
func (p *podRules) dead() (list []string, err error) {
	owners := map[string]bool{}
	for _, elements := range p.seen {
		for _, e := range elements {
			owners[tables.OwnerOf(e).Link] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(owners)) {
		live, err := p.alive(name)
		if err != nil {
			return nil, err
		}
		if !live {
			list = append(list, name)
		}
	}
	return list, nil
}
