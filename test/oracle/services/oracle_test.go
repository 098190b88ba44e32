package services

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/vishvananda/netlink"
	"k8s.io/klog/v2"

	"github.com/braidnet/braid/netagent/service"
)

var (
	flagSeed     = flag.Uint64("oracle.seed", 1, "seed of all that is random")
	flagClusters = flag.Int("oracle.clusters", 200, "how many clusters to compare")
	flagWorlds   = flag.Int("oracle.worlds", 8, "how many nodes the clusters are spread over, each with settings of its own")
	flagGo       = flag.Bool("oracle.go-on", false, "go on after the last difference that is shown, and list what else there is")
	flagShow     = flag.Int("oracle.show", 1, "how many differences to show of each world before it ends")
)

// TestServices is the whole comparison.
func TestServices(t *testing.T) {
	klog.SetLogger(logr.Discard())
	start := time.Now()
	var all total
	t.Run("worlds", func(t *testing.T) {
		for i := range *flagWorlds {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				r := newRun(t, i)
				defer all.add(r)
				for range (*flagClusters + *flagWorlds - 1 - i) / *flagWorlds {
					r.step()
				}
			})
		}
	})
	all.report(t, start)
}

// run is one world's.
type run struct {
	t      *testing.T
	world  *world
	number int // of the world
	settings
	planes []*plane
	now    *cluster
	empty  *cluster
	port   int
	client int
	total
}

func newRun(t *testing.T, i int) *run {
	w := &world{Rand: rand.New(rand.NewPCG(*flagSeed, uint64(i)))}
	s := settings{detectLocal: []string{"NodeCIDR", "NodeCIDR", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "NodeCIDR", "InterfaceNamePrefix", "NodeCIDR"}[i%8]}
	s.loopback = i%8 == 0 || i%8 == 2 || i%8 == 6
	switch i % 8 {
	case 1:
		s.nodePortAddresses = []string{"192.0.2.0/24", "2001:db8::/64"}
	case 3:
		s.masqueradeAll = true
	case 5: // those that are "primary"
		s.nodePortAddresses = []string{"192.0.2.1/32", "2001:db8::1/128"}
	}
	return &run{t: t, world: w, number: i, settings: s, planes: newPlanes(t, s), now: &cluster{}, empty: &cluster{}}
}

// apply makes a cluster that of all planes, and has them forget connections of the last.
func (r *run) apply(to *cluster) {
	for _, p := range r.planes {
		if err := p.apply(r.now, to); err != nil {
			r.t.Fatalf("%s: %v\n%s", p.name, err, to.yaml())
		}
		r.must(p.Do(func() error {
			if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
				return err
			}
			return netlink.ConntrackTableFlush(netlink.ConntrackExpectTable)
		}))
	}
	r.now, r.port = to, 0
}

func (r *run) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// difference is one packet that two planes treat in different ways.
type difference struct {
	*probe
	a, b    *plane
	as, bs  outcomes
	cluster *cluster
	config  settings
}

func (d *difference) String() string {
	return fmt.Sprintf("%s\n  %-20s %s\n  %-20s %s", d.probe, d.a.name+":", d.as, d.b.name+":", d.bs)
}

// step compares one more cluster.
func (r *run) step() {
	before := r.now
	r.apply(r.world.next(before))
	r.clusters++
	for _, d := range r.compare(r.world.probes(r.now)) {
		if name := intendedName(d); name != "" {
			r.count(name)
			continue
		}
		r.differences++
		if r.differences > *flagShow {
			r.t.Logf("SIG %s | %s | from %s to %s | %s | %s", d.a.name, d.b.name, d.from, d.what, d.as, d.bs)
			continue
		}
		found := r.now
		r.t.Errorf("seed %d, world %d, cluster %d: %s", *flagSeed, r.number, r.clusters, r.shrink(before, d))
		r.apply(found)
	}
	if r.differences > *flagShow && !*flagGo {
		r.t.FailNow()
	}
}

// pairs are the planes that are compared: the other mode of ours, and the same mode of kube-proxy.
var pairs = [][2]int{{0, 1}, {0, 2}, {1, 3}}

// compare sends the probes in all planes and returns what differs.
func (r *run) compare(list []*probe) (out []*difference) {
	all := make([]seen, len(r.planes))
	for i, p := range r.planes {
		all[i] = seen{}
		r.send(p, all[i], 4, list...)
	}
	for _, p := range list {
		r.settle(all, p)
		out = append(out, r.differing(p, func(i int) outcomes { return all[i][p] })...)
	}
	kept := 0
	for _, p := range list {
		if kept < maxKept && r.canKeep(p) {
			kept++
			out = append(out, r.compareKept(p)...)
		}
	}
	return out
}

// differing compares the planes in pairs.
func (r *run) differing(p *probe, became func(plane int) outcomes) (out []*difference) {
	for _, pair := range pairs {
		a, b := became(pair[0]), became(pair[1])
		if !r.same(p, a, b) {
			out = append(out, &difference{probe: p, cluster: r.now, config: r.settings, a: r.planes[pair[0]], b: r.planes[pair[1]], as: a, bs: b})
		}
	}
	return out
}

// settle goes on sending where planes have not seen the same backends yet: which of them is taken is chance.
func (r *run) settle(all []seen, p *probe) {
	for range 10 {
		same := true
		u := union(all, p)
		for i := range all {
			if !r.same(p, all[i][p], u) && u.balanced() && !all[i][p].certain() {
				same = false
				r.send(r.planes[i], all[i], 16, p)
			}
		}
		if same {
			return
		}
	}
}

// same reports whether two sets are equal, as far as chance lets them be.
func (r *run) same(p *probe, a, b outcomes) bool {
	if p.sticky() && !p.many { // one client sees one backend
		allowed := r.allows(p)
		return maps.Equal(classes(a, allowed), classes(b, allowed))
	}
	return slices.Equal(sortedKeys(a), sortedKeys(b))
}

// allows returns the backends that a probe may reach at all.
func (r *run) allows(p *probe) (list []netip.AddrPort) {
	f := r.frontend(p)
	for _, b := range slices.Concat(f.Backends, f.Inside) {
		list = append(list, b.AddrPort)
	}
	return list
}

// frontend is what ours make of a probe's destination.
func (r *run) frontend(p *probe) service.Frontend {
	return r.planes[0].program.(*braid).frontend(p.dst, p.protocol)
}

// classes are the outcomes without the backend, if it is one of those allowed. The node itself, as
// one, may look in several ways.
func classes(o outcomes, allowed []netip.AddrPort) map[string]bool {
	out := map[string]bool{}
	for x := range o {
		switch class := x.class; {
		case x.backend.IsValid() && !slices.Contains(allowed, x.backend):
			out[x.String()] = true
		case class == "to", class == "to the node", class == "passed to the node", class == "refused, icmp 3/2", class == "refused, icmp 4/1":
			out["to"] = true
		default:
			out[class] = true
		}
	}
	return out
}

func sortedKeys(o outcomes) (out []string) {
	for x := range o {
		out = append(out, x.String())
	}
	slices.Sort(out)
	return out
}
