package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// accounts are the service accounts of the manifests, named as their roles.
var accounts = []string{"braid-netagent", "braid-coredns"}

// auditEvent is as much of a line of the audit log as is asked for here.
type auditEvent struct {
	Verb, RequestURI string
	User             struct{ Username string }
	ObjectRef        *struct{ APIGroup, Resource, Subresource, Namespace string }
	Annotations      map[string]string
}

// use is what the account asked for, as "verb resource.group", or a path of no resource.
func (e auditEvent) use() string {
	if e.ObjectRef == nil || e.ObjectRef.Resource == "" {
		return e.Verb + " " + e.RequestURI
	}
	name := e.ObjectRef.Resource
	if e.ObjectRef.Subresource != "" {
		name += "/" + e.ObjectRef.Subresource
	}
	return grant(e.Verb, name, e.ObjectRef.APIGroup)
}

func grant(verb, resource, group string) string {
	return strings.TrimSuffix(verb+" "+resource+"."+group, ".")
}

// audited reads the audit log from a place on: what a service account used, and what it was denied.
func (o *options) audited(from int64, account string) (used, denied []string, err error) {
	f, err := os.Open(o.path(control, "log", "audit.log"))
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if _, err := f.Seek(from, 0); err != nil {
		return nil, nil, err
	}
	all := [2]map[string]bool{{}, {}}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e auditEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		if e.User.Username != "system:serviceaccount:"+system+":"+account {
			continue
		}
		which := 0
		if e.Annotations["authorization.k8s.io/decision"] == "forbid" {
			which = 1
		}
		all[which][e.use()] = true
	}
	return slices.Sorted(maps.Keys(all[0])), slices.Sorted(maps.Keys(all[1])), lines.Err()
}

// granted lists what a role grants.
func (r *rig) granted(role string) (out []string, err error) {
	var object struct {
		Rules []struct{ APIGroups, Resources, Verbs []string }
	}
	if err := r.api.get(r.ctx, "/apis/rbac.authorization.k8s.io/v1/clusterroles/"+role, &object); err != nil {
		return nil, err
	}
	for _, rule := range object.Rules {
		for _, g := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, v := range rule.Verbs {
					out = append(out, grant(v, resource, g))
				}
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// faultRBAC lets both programs start, follow, and start again at an API server that streams no lists, as
// older ones do: after that they have asked for everything they ever ask for.
func faultRBAC(r *rig) error {
	log, err := os.Stat(r.o.path(control, "log", "audit.log"))
	if err != nil {
		return err
	}
	c := &checker{ctx: r.ctx, o: r.o, quiet: true}
	if err := c.whole(); err != nil {
		return err
	}
	r.verdict(c.failed == 0, "`check` under the eyes of the audit log: %d answers, %d wrong", c.asked, c.failed)
	if err := r.restartPods(); err != nil {
		return err
	}
	for _, gates := range [][]string{{"WatchList=false"}, nil} {
		if err := r.stopControlPlane(); err != nil {
			return err
		}
		if err := r.startControlPlane(gates...); err != nil {
			return err
		}
		if err := r.restartPods(); err != nil {
			return err
		}
	}
	for _, account := range accounts {
		granted, err := r.granted(account)
		if err != nil {
			return err
		}
		var used []string
		err = await(r.ctx, account+" to use its grants", 30*time.Second, func() (err error) {
			used, _, err = r.o.audited(log.Size(), account)
			if err == nil && !slices.Equal(used, granted) {
				err = fmt.Errorf("used\n  %s\ngranted\n  %s", strings.Join(used, ", "), strings.Join(granted, ", "))
			}
			return err
		})
		r.verdict(err == nil, "%s uses exactly its %d grants%s", account, len(granted), because(err))
		_, denied, err := r.o.audited(0, account)
		if err != nil {
			return err
		}
		// An API server that has just started denies everybody for a moment, until it knows the roles.
		denied = slices.DeleteFunc(denied, func(use string) bool { return slices.Contains(granted, use) })
		r.verdict(len(denied) == 0, "%s never asked for more: %s", account, few(denied))
	}
	return nil
}

// restartPods starts every agent and CoreDNS anew.
func (r *rig) restartPods() error {
	for _, selector := range []string{agentLabel, coreDNSLabel} {
		pods, err := r.api.awaitPods(r.ctx, system, selector, r.o.Nodes)
		if err != nil {
			return err
		}
		if err := r.deletePods(selector, pods...); err != nil {
			return err
		}
	}
	return nil
}
