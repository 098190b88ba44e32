package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const checkNamespace = "braid-check"

// checkManifest spreads two servers over the nodes. Each answers /hostname with its pod's name and /clientip
// with who asks.
const checkManifest = `apiVersion: v1
kind: Namespace
metadata: {name: ` + checkNamespace + `}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: ` + checkNamespace + `}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - name: web
        image: ` + testImage + `
        imagePullPolicy: Never
        args: [netexec, --http-port=8080, --udp-port=-1]
        readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: ` + checkNamespace + `}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`

// checker asks questions of a cluster and keeps count.
type checker struct {
	ctx    context.Context
	o      *options
	failed int
}

type checkPod struct {
	Metadata struct{ Name string }
	Spec     struct{ NodeName string }
	Status   struct{ PodIPs []struct{ IP netip.Addr } }
}

type checkService struct {
	Spec struct {
		ClusterIPs []netip.Addr
		Ports      []struct{ NodePort uint16 }
	}
}

func runCheck(ctx context.Context, args []string) error {
	o, _, err := load("check", args)
	if err != nil {
		return err
	}
	c := &checker{ctx: ctx, o: o}
	err = c.run()
	_, gone := o.kubectl(ctx, "delete", "namespace", checkNamespace, "--ignore-not-found")
	if err = errors.Join(err, gone); err != nil {
		return err
	}
	if c.failed > 0 {
		return fmt.Errorf("%d answers are wrong", c.failed)
	}
	return nil
}

func (c *checker) run() error {
	begin := time.Now()
	if err := c.o.apply(c.ctx, checkManifest); err != nil {
		return err
	}
	if _, err := c.o.kubectl(c.ctx, "rollout", "status", "-n", checkNamespace, "deployment/web", "--timeout=120s"); err != nil {
		return fmt.Errorf("%w\n%s", err, c.o.explain(c.ctx))
	}
	fmt.Printf("two pods Running and Ready after %.1fs\n", time.Since(begin).Seconds())
	var pods struct{ Items []checkPod }
	var svc checkService
	if err := errors.Join(c.get(&pods, "pods", "-l", "app=web"), c.get(&svc, "service", "web")); err != nil {
		return err
	}
	var names []string
	for _, p := range pods.Items {
		names = append(names, p.Metadata.Name)
	}
	for _, p := range pods.Items {
		c.fromPod(p, pods.Items, svc, names)
	}
	for i := range c.o.Nodes {
		for _, f := range c.o.families() {
			if slices.ContainsFunc(svc.Spec.ClusterIPs, func(a netip.Addr) bool { return a.Is4() == f.control.Is4() }) {
				c.outside(netip.AddrPortFrom(f.node(i+1), svc.Spec.Ports[0].NodePort), names)
			}
		}
	}
	return nil
}

// get decodes an object of the check's namespace.
func (c *checker) get(into any, args ...string) error {
	text, err := c.o.kubectl(c.ctx, append([]string{"get", "-n", checkNamespace, "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), into)
}

// fromPod asks from one pod for the service's name, the service, and every pod.
func (c *checker) fromPod(from checkPod, pods []checkPod, svc checkService, names []string) {
	who := fmt.Sprintf("%s on %s", from.Metadata.Name, from.Spec.NodeName)
	for _, ip := range svc.Spec.ClusterIPs {
		kind := "A"
		if ip.Is6() {
			kind = "AAAA"
		}
		c.ask(who, from, []string{ip.String()}, "dig", "+short", "+search", "+tries=2", "+time=2", "web", kind)
		c.ask(who, from, names, "curl", "-gsS", "-m5", fmt.Sprintf("http://%s/hostname", netip.AddrPortFrom(ip, 80)))
	}
	c.ask(who, from, names, "curl", "-sS", "-m5", "http://web."+checkNamespace+"/hostname")
	for _, to := range pods {
		for _, ip := range to.Status.PodIPs {
			// The server sees the pod's own address: nothing between pods is masqueraded.
			i := slices.IndexFunc(from.Status.PodIPs, func(p struct{ IP netip.Addr }) bool { return p.IP.Is4() == ip.IP.Is4() })
			c.ask(who, from, []string{from.Status.PodIPs[i].IP.String()}, "sh", "-c",
				fmt.Sprintf("curl -gsS -m5 http://%s/clientip | sed 's/:[0-9]*$//; s/[][]//g'", netip.AddrPortFrom(ip.IP, 8080)))
		}
	}
}

// ask runs a command in a pod and judges what it prints.
func (c *checker) ask(who string, from checkPod, want []string, argv ...string) {
	out, err := c.o.kubectl(c.ctx, append([]string{"exec", "-n", checkNamespace, from.Metadata.Name, "--"}, argv...)...)
	c.judge(who+": "+strings.Join(argv, " "), strings.TrimSpace(out), err, want)
}

func (c *checker) judge(question, answer string, err error, want []string) {
	verdict := "ok   "
	if err != nil || !slices.Contains(want, answer) {
		verdict = "WRONG"
		c.failed++
		answer = fmt.Sprintf("%q, want one of %q", answer, want)
		if err != nil {
			answer += ": " + err.Error()
		}
	}
	fmt.Printf("%s  %s → %s\n", verdict, question, answer)
}

// outside asks a node port from the control plane's network, which is no node and no pod.
func (c *checker) outside(addr netip.AddrPort, names []string) {
	var answer string
	err := within(c.o.nsName(control), func() error {
		conn, err := net.DialTimeout("tcp", addr.String(), 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "GET /hostname HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		data, err := io.ReadAll(conn)
		_, answer, _ = strings.Cut(string(data), "\r\n\r\n")
		return err
	})
	c.judge("from outside: node port "+addr.String(), answer, err, names)
}
