-- Whose database this is: the region of the node that came first. A node of another one must not store its buckets here.
CREATE TABLE region (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    name text NOT NULL
);
