package dns

import (
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/braidnet/braid/internal/source"
	"github.com/braidnet/braid/test/oracle/fakeapi"
)

var (
	seedFlag    = flag.Uint64("oracle.seed", 1, "seed of the generated clusters and questions")
	queriesFlag = flag.Int("oracle.queries", 20000, "number of generated questions")
	clusterFlag = flag.Int("oracle.clusters", 4, "number of generated clusters, at most 64")
	onlyFlag    = flag.String("oracle.variant", "", "ask only this variant of the Corefile")
)

// tally counts what a run has seen.
type tally struct {
	mu      sync.Mutex
	queries int
	allowed map[string]int
	found   int
	kinds   map[string]int
	shown   map[string]bool // what was reported, by the simplest question
}

func (c *tally) add(t *testing.T, x *exchange) {
	reason, ok := x.verdict()
	c.mu.Lock()
	c.queries++
	if reason != "" {
		c.allowed[reason]++
	}
	if ok {
		c.mu.Unlock()
		return
	}
	c.found++
	// A few of each kind are enough to see what is wrong.
	kind := fmt.Sprint(dns.Type(x.q.typ), x.stock.diff(x.ours), x.stock.rcode, x.ours.rcode)
	c.kinds[kind]++
	enough := c.kinds[kind] > 3
	c.mu.Unlock()
	if t.Fail(); enough {
		return
	}
	text := x.shrunk().String()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.shown[text] {
		c.shown[text] = true
		t.Error(text)
	}
}

func (c *tally) String() string {
	var reasons []string
	total := 0
	for _, r := range slices.Sorted(maps.Keys(c.allowed)) {
		reasons = append(reasons, fmt.Sprintf("%s: %d", r, c.allowed[r]))
		total += c.allowed[r]
	}
	return fmt.Sprintf("%d queries compared, %d differences allowed (%s), differences found: %d", c.queries, total, strings.Join(reasons, "; "), c.found)
}

// TestOracle compares both programs over hand-written and generated clusters and questions, ours without
// and with the word fastpath in every server block.
func TestOracle(t *testing.T) {
	t.Run("plugins", func(t *testing.T) { oracle(t, false) })
	t.Run("fastpath", func(t *testing.T) { oracle(t, true) })
}

func oracle(t *testing.T, fast bool) {
	api, err := fakeapi.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	all := variants()
	var cluster *cluster
	local := localAddrs()
	cluster = next(t, api, cluster, 0, local)
	start(t, "stock", stock(t), corefile(t, all, api.URL(), "stock"))
	ourCorefile, metrics := corefile(t, all, api.URL(), "ours"), ""
	if fast {
		metrics = fmt.Sprintf("127.0.0.1:%d", freePort(t))
		ourCorefile = strings.ReplaceAll(ourCorefile, "    errors\n", "    errors\n    prometheus "+metrics+"\n    fastpath\n")
	}
	start(t, "ours", ours(t), ourCorefile)
	if *onlyFlag != "" {
		all = slices.DeleteFunc(all, func(v *variant) bool { return v.name != *onlyFlag })
	}
	count := &tally{allowed: map[string]int{}, shown: map[string]bool{}, kinds: map[string]int{}}
	began := time.Now()
	for g := range *clusterFlag {
		if g > 0 {
			cluster = next(t, api, cluster, g, local)
		}
		for _, v := range all {
			synced(t, v, g)
		}
		var questions []question
		if g == 0 {
			questions = byHand(all)
		}
		for i := 0; i < *queriesFlag / *clusterFlag; {
			if q := cluster.ask(all[i%len(all)]); valid(q.name) {
				questions = append(questions, q)
				i++
			}
		}
		compare(t, count, questions)
	}
	t.Logf("oracle: seed %d, %d clusters, %d variants, %v: %s", *seedFlag, *clusterFlag, len(all), time.Since(began).Round(time.Millisecond), count)
	if fast {
		n := fastAnswers(t, metrics)
		t.Logf("oracle: %d of the answers were made on the fast path", n)
		if n < 1000 {
			t.Error("that is too few to say that it answers the same")
		}
	}
}

// fastAnswers returns how many answers a program says it made on the fast path.
func fastAnswers(t *testing.T, metrics string) (n int) {
	t.Helper()
	res, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		if value, ok := strings.CutPrefix(line, "coredns_fastpath_answers_total "); ok {
			f, _ := strconv.ParseFloat(value, 64)
			n = int(f)
		}
	}
	return n
}

// compare asks all questions, by a few hands at once.
func compare(t *testing.T, count *tally, questions []question) {
	work := make(chan question)
	var hands sync.WaitGroup
	for range 4 {
		hands.Go(func() {
			pairs := map[*variant]*pair{}
			for q := range work {
				p := pairs[q.variant]
				if p == nil {
					p = newPair(q.variant)
					pairs[q.variant] = p
				}
				count.add(t, p.ask(q))
			}
			for _, p := range pairs {
				p.close()
			}
		})
	}
	for _, q := range questions {
		work <- q
	}
	close(work)
	hands.Wait()
}

// byHand returns the hand-written questions: every name with every type, in its own and in mixed case.
func byHand(all []*variant) (out []question) {
	for i, v := range all {
		names := slices.Clone(handReverse)
		for _, zone := range v.zones {
			for _, rel := range handNames {
				names = append(names, relative(rel, zone))
			}
		}
		for j, name := range names {
			for k, typ := range allTypes {
				q := question{variant: v, name: name, typ: typ, class: dns.ClassINET, tcp: (i+j+k)%5 == 0}
				if (i+j+k)%3 == 0 {
					q.name, q.edns, q.do = everyOtherUpper(q.name), 1232, k%2 == 0
				}
				if valid(q.name) && !v.mute(q) {
					out = append(out, q)
				}
			}
		}
	}
	return out
}

// valid reports whether a name can be asked for at all.
func valid(name string) bool {
	_, err := dns.PackDomainName(name, make([]byte, 512), 0, nil, false)
	return err == nil
}

func everyOtherUpper(s string) string {
	b := []byte(s)
	for i := 0; i < len(b); i += 2 {
		if b[i] >= 'a' && b[i] <= 'z' {
			b[i] -= 'a' - 'A'
		}
	}
	return string(b)
}

// next makes the API server's state that of generation g, as a series of changes to the one before,
// and ends with objects whose answers tell that all before them have arrived.
func next(t *testing.T, api *fakeapi.Server, before *cluster, g int, local []netip.Addr) *cluster {
	t.Helper()
	c := generate(*seedFlag, g, local)
	c.objects = append(handCluster(), c.objects...)
	if len(local) > 0 {
		own := local[0].String()
		c.objects = append(c.objects, service("hand/kube-dns", "10.96.85.1 fd00:10:96::85", "dns/UDP/53"), slice("hand/kube-dns-1", "kube-dns", "dns/UDP/53", own, "10.244.85.2"),
			slice("hand/kube-dns-2", "kube-dns", "dns/UDP/53", own), service("hand/dns-headless", "None", "dns/UDP/53"), slice("hand/dns-headless-1", "dns-headless", "dns/UDP/53", own+"=ns-0", "10.244.85.3"))
	}
	ns := "sync-" + itoa(g)
	c.objects = append(c.objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, service(ns+"/s", "10.97.0.1", "x/TCP/1"), service(ns+"/h", "None", "x/TCP/1"),
		&source.ServiceImport{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "i"}, Spec: source.ServiceImportSpec{Type: "ClusterSetIP", IPs: []string{"10.98.99.1"}, Ports: []source.ServiceImportPort{{Name: "x", Port: 1, Protocol: corev1.ProtocolTCP}}}},
		slice(ns+"/s", "s", "x/TCP/1", "10.244.99.1"), slice(ns+"/h", "h", "x/TCP/1", "10.244.99.2"), pod(ns+"/p", corev1.PodRunning, "10.244.99.3"))
	if before != nil {
		still := map[string]bool{}
		for _, o := range c.objects {
			still[fmt.Sprintf("%T %s/%s", o, o.GetNamespace(), o.GetName())] = true
		}
		var gone []fakeapi.Object
		for _, o := range before.objects {
			if !still[fmt.Sprintf("%T %s/%s", o, o.GetNamespace(), o.GetName())] {
				gone = append(gone, o)
			}
		}
		api.Delete(gone...)
	}
	label(c.objects)
	api.Put(c.objects...)
	return c
}

// synced waits until both servers of a variant know generation g.
func synced(t *testing.T, v *variant, g int) {
	t.Helper()
	names := []string{"s.sync-%d.svc"}
	if !v.noSlices {
		names = append(names, "h.sync-%d.svc")
	}
	if v.verified {
		names = append(names, "10-244-99-3.sync-%d.pod")
	}
	zone := v.zones[0]
	if v.name == "multicluster" {
		zone = v.zones[1]
		names = append(names, "i.sync-%d.svc")
	}
	p := newPair(v)
	defer p.close()
	for _, name := range names {
		zone := zone
		if strings.HasPrefix(name, "i.") {
			zone = v.zones[0]
		}
		eventually(t, v.name+": generation "+itoa(g)+" of the cluster", func() error {
			x := p.ask(question{variant: v, name: relative(fmt.Sprintf(name, g), zone), typ: dns.TypeA, class: dns.ClassINET})
			if len(x.stock.answer) == 1 && len(x.ours.answer) == 1 && !strings.Contains(x.stock.answer[0]+x.ours.answer[0], "192.0.2.99") {
				return nil
			}
			return fmt.Errorf("%s", x)
		})
	}
}
