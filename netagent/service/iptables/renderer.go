package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/netagent/service"
)

// Saved is what iptables-save printed.
type Saved = xt.Saved

// Renderer holds the rules of one family: those wanted, those known to be in the kernel, and which
// chains may differ. It is used by one goroutine.
type Renderer struct {
	family
	liberal   bool
	health    []uint16 // health check node ports that are let in
	loopback  bool     // the guard of loopback addresses is wanted
	frontends map[slot]service.Frontend
	closed    map[slot]closed
	touched   map[slot]struct{}  // frontends set since the last Commit
	addrs     map[netip.Addr]int // cluster IPs, and how many frontends each has
	trees     map[chainID]*tree  // by the chain at their root
	want      map[chainID][]string
	have      map[chainID][]string
	dirty     map[chainID]struct{}
	total     map[string]int      // rules of ours in the kernel, by table
	last      map[string]int      // rules that the last Commit was about
	fix       map[string][]string // table -> commands that repair the jumps from foreign chains
	ahead     []chainID           // the part that Pending returned last; nil when that was all
	early     map[string]int      // rules of parts since the last Commit of all, by table

	// Parts is how many chains a part has at most, but for the last; 0: all is written at once. The nftables variant of the
	// tools takes a time that grows with the square of the chains in one input.
	Parts int
}

// slot is a key without the kind of its address; see service.Planner, which lets one frontend hold it.
type slot service.Key

func slotOf(k service.Key) slot {
	if k.Kind != service.NodePort {
		k.Kind = 0
	}
	return slot(k)
}

// New returns a renderer for one family that wants and knows nothing. Call Replace first. Where connection
// tracking is liberal with TCP (net.netfilter.nf_conntrack_tcp_be_liberal), packets that it cannot place
// are left alone.
func New(ipv6, liberal bool) *Renderer {
	r := &Renderer{family: newFamily(ipv6), liberal: liberal, have: map[chainID][]string{}, total: map[string]int{}, last: map[string]int{}, early: map[string]int{}}
	r.reset()
	return r
}

func (r *Renderer) reset() {
	r.health = nil
	r.frontends = map[slot]service.Frontend{}
	r.closed = map[slot]closed{}
	r.touched = map[slot]struct{}{}
	r.addrs = map[netip.Addr]int{}
	r.want = map[chainID][]string{}
	r.dirty = map[chainID]struct{}{}
	r.fix = map[string][]string{}
	r.ahead, r.early = nil, map[string]int{}
	r.trees = map[chainID]*tree{}
	for _, t := range FrontendTables {
		for _, root := range []string{chainAddresses, chainNodePorts} {
			r.trees[chainID{t, root}] = newTree()
		}
	}
	r.trees[chainID{"filter", chainClusterIPs}] = newTree()
}

// Replace wants exactly these frontends and takes kernel for what is there now: chains that are
// right stay untouched, wrong and foreign-born BRAID- chains are rewritten or removed.
func (r *Renderer) Replace(all []service.Frontend, net service.Net, kernel Saved) {
	r.reset()
	r.setAll(r.skeleton())
	r.setNet(net)
	for i := range all {
		r.set(&all[i])
	}
	r.plant()
	r.adopt(kernel)
}

// Apply wants the change d on top of what was wanted before.
func (r *Renderer) Apply(d service.Delta) {
	if d.Net != nil {
		guarded := r.loopback
		if r.setNet(*d.Net); r.loopback != guarded {
			verb := map[bool]string{true: "-I %s 1 %s", false: "-D %s %s"}[r.loopback]
			r.fix[guard.table] = []string{fmt.Sprintf(verb, guard.chain, guard.rule)}
		}
	}
	for _, k := range d.Delete {
		if old, ok := r.frontends[slotOf(k)]; ok && old.Key == k {
			r.drop(&old)
		}
	}
	for i := range d.Set {
		r.set(&d.Set[i])
	}
	r.plant()
}

// setNet wants the chains that depend on addresses.
func (r *Renderer) setNet(net service.Net) {
	r.setAll(r.netChains(net, r.liberal))
	r.setHealth(net.HealthPorts)
	id := chainID{guard.table, chainLoopback}
	if r.loopback = net.Loopback && !r.ipv6; r.loopback {
		r.setAll(map[chainID][]string{id: r.loopbackRules()})
	} else {
		delete(r.want, id)
		r.dirty[id] = struct{}{}
	}
}

// set makes f the frontend of its slot, open whatever came before.
func (r *Renderer) set(f *service.Frontend) {
	if f.Addr.Is4() == r.ipv6 {
		return
	}
	if _, ok := dispatchKey(f.Key); !ok {
		return
	}
	s := slotOf(f.Key)
	r.count(f, 1) // first, so that an address that stays is not taken away between
	if old, ok := r.frontends[s]; ok {
		r.dropChains(&old)
		r.count(&old, -1)
	}
	r.frontends[s] = *f
	r.touched[s] = struct{}{}
	delete(r.closed, s)
	r.show(f, open)
}

// show writes the rules of a frontend as open or closed.
func (r *Renderer) show(f *service.Frontend, state closure) {
	if state == open {
		r.setAll(r.frontendChains(f))
	} else {
		r.dropChains(f)
	}
	key, _ := dispatchKey(f.Key)
	rules := r.dispatch(f, key, state)
	for _, table := range FrontendTables {
		if x := rules[table]; x != "" {
			r.tree(table, f).put(key, x)
		} else {
			r.tree(table, f).del(key)
		}
	}
}

func (r *Renderer) drop(f *service.Frontend) {
	r.show(f, absent)
	r.count(f, -1)
	s := slotOf(f.Key)
	delete(r.frontends, s)
	delete(r.closed, s)
	delete(r.touched, s)
}

func (r *Renderer) dropChains(f *service.Frontend) {
	for id := range r.frontendChains(f) {
		delete(r.want, id)
		r.dirty[id] = struct{}{}
	}
}

// count follows which addresses are cluster IPs: their other ports are refused.
func (r *Renderer) count(f *service.Frontend, by int) {
	if f.Kind != service.ClusterIP {
		return
	}
	r.addrs[f.Addr] += by
	key, _ := dispatchKey(f.Key)
	addr, t := key[:r.addrNibbles], r.trees[chainID{"filter", chainClusterIPs}]
	if r.addrs[f.Addr] > 0 {
		t.put(addr, rule(pathMatch(addr, r.addrNibbles), comment("braid no such port"), "-j "+chainRefuse))
		return
	}
	delete(r.addrs, f.Addr)
	t.del(addr)
}

func (r *Renderer) tree(table string, f *service.Frontend) *tree {
	if f.Kind == service.NodePort {
		return r.trees[chainID{table, chainNodePorts}]
	}
	return r.trees[chainID{table, chainAddresses}]
}

func (r *Renderer) setAll(chains map[chainID][]string) {
	for id, rules := range chains {
		r.want[id] = rules
		r.dirty[id] = struct{}{}
	}
}

// plant renders the dispatch chains that the trees changed.
func (r *Renderer) plant() {
	for root, t := range r.trees {
		nibbles := r.addrNibbles
		if root.name == chainNodePorts {
			nibbles = 0
		}
		t.flush(func(path string, n *node) {
			id := chainID{root.table, dispatchChain(root.name, path)}
			r.dirty[id] = struct{}{}
			if n == nil {
				delete(r.want, id)
				return
			}
			var rules []string
			n.each(func(leaf string) { rules = append(rules, leaf) }, func(to string) {
				rules = append(rules, rule(dispatchMatch(to, nibbles), "-j "+dispatchChain(root.name, to)))
			})
			r.want[id] = rules
		})
	}
}

func dispatchChain(root, path string) string {
	if path == "" {
		return root
	}
	return hashed("D", root, []byte(path))
}

// dispatchMatch is pathMatch with a comment at the place where iptables-save prints it.
func dispatchMatch(path string, addrNibbles int) string {
	match, text := pathMatch(path, addrNibbles), comment("braid dispatch")
	if at := strings.Index(match, "-m "); at >= 0 {
		return match[:at] + text + " " + match[at:]
	}
	return rule(match, text)
}

// adopt compares what is wanted with what the kernel holds.
func (r *Renderer) adopt(kernel Saved) {
	r.have = map[chainID][]string{}
	for _, t := range tables {
		for name, rules := range kernel[t] {
			if !strings.HasPrefix(name, Prefix) {
				continue
			}
			id := chainID{t, name}
			want, ok := r.want[id]
			if ok && xt.EqualRules(want, rules) {
				r.have[id] = want
				delete(r.dirty, id)
				continue
			}
			r.have[id] = rules
			r.dirty[id] = struct{}{}
		}
		r.fix[t] = fixJumps(t, kernel[t], r.jumps())
	}
	r.recount()
}

// jumps lists the jumps that are wanted.
func (r *Renderer) jumps() []jump {
	if r.loopback {
		return append([]jump{guard}, jumps...)
	}
	return jumps
}

// fixJumps returns the commands after which the foreign chains of a table hold each of our jumps
// once. Rules that lead to our chains in any other way are remains of another release.
func fixJumps(table string, chains map[string][]string, jumps []jump) (commands []string) {
	present := map[jump]bool{}
	for _, name := range xt.SortedNames(chains) {
		if strings.HasPrefix(name, Prefix) {
			continue
		}
		for _, have := range chains[name] {
			if !leadsToUs(have) {
				continue
			}
			at := slices.IndexFunc(jumps, func(j jump) bool {
				return j.table == table && j.chain == name && xt.EqualRule(j.rule, have)
			})
			if at >= 0 && !present[jumps[at]] {
				present[jumps[at]] = true
				continue
			}
			commands = append(commands, "-D "+name+" "+have)
		}
	}
	for _, j := range jumps {
		if j.table == table && !present[j] {
			commands = append(commands, fmt.Sprintf("-I %s %d %s", j.chain, 1+policyRules(chains[j.chain]), j.rule))
		}
	}
	return commands
}

// policyRules counts the rules at the beginning of a chain that lead to policy's chains, which come first.
func policyRules(rules []string) (n int) {
	for n < len(rules) && strings.HasPrefix(xt.LeadsTo(rules[n]), xt.PolicyPrefix) {
		n++
	}
	return n
}

// Pending returns the input for iptables-restore that makes the kernel hold what is wanted, "" when
// it does already; with Parts set, the next part of it. Call Commit once the kernel took it, and ask again.
func (r *Renderer) Pending() string {
	var b strings.Builder
	for _, t := range tables {
		if r.ahead = r.part(t); r.ahead != nil {
			r.write(&b, t, r.ahead, nil)
			return b.String()
		}
	}
	for _, t := range tables {
		r.write(&b, t, r.changed(t), r.fix[t])
	}
	return b.String()
}

// write writes chains of one table: every one is declared first (which empties it, so that no rule is left
// that leads to a chain about to go), then filled; chains go last, when nothing leads to them.
func (r *Renderer) write(b *strings.Builder, table string, chains []chainID, fix []string) {
	var declare, fill, remove []string
	for _, id := range chains {
		declare = append(declare, ":"+id.name+" - [0:0]")
		rules, ok := r.want[id]
		for _, x := range rules {
			fill = append(fill, "-A "+id.name+" "+x)
		}
		if !ok {
			remove = append(remove, "-X "+id.name)
		}
	}
	lines := slices.Concat(declare, fill, fix, remove)
	if len(lines) == 0 {
		return
	}
	b.WriteString("*" + table + "\n")
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	b.WriteString("COMMIT\n")
}

// changed returns the dirty chains of a table that really differ, as sortChains sorts them.
func (r *Renderer) changed(table string) (out []chainID) {
	for id := range r.dirty {
		if id.table != table {
			continue
		}
		want, wanted := r.want[id]
		have, there := r.have[id]
		if wanted != there || !slices.Equal(want, have) {
			out = append(out, id)
		}
	}
	sortChains(out)
	return out
}

// Commit notes that the kernel took what Pending returned. It reports whether there is more.
func (r *Renderer) Commit() (more bool) {
	if r.ahead != nil {
		r.commitPart()
		return true
	}
	r.countDirty()
	for id := range r.dirty {
		if want, ok := r.want[id]; ok {
			r.have[id] = want
		} else {
			delete(r.have, id)
		}
	}
	clear(r.fix)
	// Not cleared: that costs what the map once held, after a Replace all there is.
	r.dirty, r.touched = map[chainID]struct{}{}, map[slot]struct{}{}
	return false
}
