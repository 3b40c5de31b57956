package freeswitchtest

import (
	"context"
	"strconv"
	"sync"
	"time"
)

// directoryCache keeps users that were answered with cacheable="MS", for so
// long (fact 16). Its key has no separators, so that two users may share one.
type directoryCache struct {
	mu    sync.Mutex
	users map[string]cachedUser
}

type cachedUser struct {
	user *element
	ends time.Time
}

func (c *directoryCache) get(key string) *element {
	c.mu.Lock()
	defer c.mu.Unlock()
	if u, ok := c.users[key]; ok && time.Now().Before(u.ends) {
		return u.user
	}
	return nil
}

func (c *directoryCache) put(key string, user *element) {
	ms, err := strconv.Atoi(user.attr("cacheable"))
	if err != nil || ms <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users == nil {
		c.users = map[string]cachedUser{}
	}
	c.users[key] = cachedUser{user, time.Now().Add(time.Duration(ms) * time.Millisecond)}
}

func (c *directoryCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.users)
}

// UserParam looks a directory user up, as the API command user_data does
// (capture xml_curl/directory-user_data.txt), and returns one of his params;
// false if there is no such user, or nobody answers. fetched tells whether a
// binding was asked, or the user was in the cache.
func (n *Node) UserParam(ctx context.Context, user, domain, param string) (value string, found, fetched bool) {
	const attribute = "id"
	key := attribute + user + domain
	u := n.directory.get(key)
	if u == nil {
		fetched = true
		f := make(fields, 0, 20)
		for _, kv := range [][2]string{{"hostname", n.cfg.ID}, {"section", "directory"}, {"tag_name", "domain"}, {"key_name", "name"}, {"key_value", domain}} {
			f.add(kv[0], kv[1])
		}
		f = append(f, n.hub.head("REQUEST_PARAMS", time.Now(), place{"mod_commands.c", "user_data_function", "1328"}, n.hub.number(), 0)...)
		for _, kv := range [][2]string{{"type", "var"}, {"key", attribute}, {"user", user}, {"domain", domain}} {
			f.add(kv[0], kv[1])
		}
		doc := n.ask(ctx, encodeForm(f))
		if u = doc.child("section", "directory").child("domain", "").find("user"); u == nil || u.attr("id") != user {
			return "", false, true
		}
		n.directory.put(key, u)
	}
	for _, p := range u.child("params", "").all() {
		if p.attr("name") == param {
			value = p.attr("value")
		}
	}
	return value, true, fetched
}

// find returns the first element of that name at any depth.
func (e *element) find(name string) *element {
	if e == nil || e.name == name {
		return e
	}
	for _, c := range e.children {
		if got := c.find(name); got != nil {
			return got
		}
	}
	return nil
}

func (e *element) all() []*element {
	if e == nil {
		return nil
	}
	return e.children
}
