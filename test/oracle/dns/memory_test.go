package dns

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/braidnet/braid/test/oracle/fakeapi"
)

var memoryFlag = flag.Bool("oracle.memory", false, "measure the memory of both programs with 10,000 services and 100,000 endpoints")

// memory returns a program's resident memory now and at its highest, in MiB.
func memory(t *testing.T, p *program) (now, peak int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "VmRSS:" {
			now = atoi(f[1]) / 1024
		}
		if len(f) == 3 && f[0] == "VmHWM:" {
			peak = atoi(f[1]) / 1024
		}
	}
	return now, peak
}

// TestMemory prints what both programs take for a large cluster, after the first list and after a relist
// as the restart of an API server brings it. It asserts nothing: numbers of two programs under one load.
func TestMemory(t *testing.T) {
	if !*memoryFlag {
		t.Skip("a measurement: -oracle.memory runs it")
	}
	api, err := fakeapi.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Stop)
	api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "prod"}})
	for i := range 10000 {
		name := fmt.Sprintf("service-%d", i)
		s := service("prod/"+name, fmt.Sprintf("10.%d.%d.%d", 96+i/65025, i/255%255, 1+i%254), "http/TCP/80 https/TCP/443")
		s.Labels = map[string]string{"app": name, "team": "red", "app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/part-of": "shop"}
		s.Spec.Selector = map[string]string{"app": name}
		var list []string
		for k := range 10 {
			n := i*10 + k
			list = append(list, fmt.Sprintf("10.%d.%d.%d=/%s-7d4b9c-%d", 128+n/65025, n/255%255, 1+n%254, name, k))
		}
		sl := slice("prod/"+name+"-abcde", name, "http/TCP/8080 https/TCP/8443", list...)
		for k := range sl.Endpoints {
			node, zone := fmt.Sprintf("node-%d", (i+k)%500), fmt.Sprintf("zone-%d", k%3)
			sl.Endpoints[k].NodeName, sl.Endpoints[k].Zone = &node, &zone
			sl.Endpoints[k].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
		}
		api.Put(s, sl)
	}
	v := &variant{name: "memory", zones: []string{"cluster.local."}, reverse: "in-addr.arpa"}
	programs := map[string]*program{}
	for which, path := range map[string]func(*testing.T) string{"stock": stock, "ours": ours} {
		programs[which] = start(t, which, path(t), corefile(t, []*variant{v}, api.URL(), which))
	}
	p := newPair(v)
	defer p.close()
	settled := func(what, rel, addr string) {
		within(t, 5*time.Minute, what, func() error {
			x := p.ask(question{variant: v, name: relative(rel, "cluster.local."), typ: dns.TypeA, class: dns.ClassINET})
			if strings.Contains(strings.Join(x.stock.answer, ""), addr) && strings.Contains(strings.Join(x.ours.answer, ""), addr) {
				return nil
			}
			return fmt.Errorf("%s", x)
		})
		for _, which := range []string{"stock", "ours"} {
			now, peak := memory(t, programs[which])
			t.Logf("%s, %s: %d MiB, peak %d MiB", what, which, now, peak)
		}
	}
	settled("first list", "10-129-137-178.service-9999.prod.svc", "10.129.137.178")
	api.Stop()
	api.Forget()
	api.Put(service("prod/last", "10.99.0.1", "http/TCP/80"))
	eventually(t, "start the API server again", api.Start)
	settled("relist", "last.prod.svc", "10.99.0.1")
}
